"""How the pocket model was made: training, evaluation and export. Not part of the wheel."""
