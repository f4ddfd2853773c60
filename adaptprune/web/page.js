// Runs once for each part of the page that Gradio's HTML component shows: `element`, `trigger` and `watch` are its.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (!button || button.getAttribute("aria-disabled") === "true") return;
  if (button.dataset.act === "copy") {
    navigator.clipboard.writeText(button.closest(".ap-said").querySelector(".ap-answer").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
    return;
  }
  trigger("click", { act: button.dataset.act });
});
// The conversation scrolls in its own box, never the page: to its end, unless its reader has scrolled away from there,
// and no further than the last lines of the answer stay in view. A new question is asked at the end: go there.
let follows = true;
let end = 0;
let asked = 0;
element.addEventListener("scroll", ({ target }) => {
  if (target.matches(".ap-talk")) follows = target.scrollTop >= end - 40;
}, true);
watch("value", () => {
  const box = element.querySelector(".ap-talk");
  if (!box) return;
  const questions = element.querySelectorAll(".ap-exchange").length;
  if (box.scrollTop < end - 40) follows = false; // the event of it is still to come
  if (follows || questions !== asked) {
    const answer = [...box.querySelectorAll(".ap-answer")].at(-1).getBoundingClientRect();
    const lastLines = answer.bottom - box.getBoundingClientRect().top + box.scrollTop - 60;
    box.scrollTop = Math.min(box.scrollHeight, lastLines);
    end = box.scrollTop;
    follows = true;
  }
  asked = questions;
});
