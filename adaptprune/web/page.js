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
// The style sheet keeps the end of the conversation in view inside its own box, unless its reader has scrolled away
// from there. A new question is asked at the end: go there.
let asked = 0;
watch("value", () => {
  const questions = element.querySelectorAll(".ap-exchange").length;
  if (questions > asked) element.querySelector(".ap-talk").scrollTop = 0;
  asked = questions;
});
