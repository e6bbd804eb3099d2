"""Tables of a report: of answers, targets, trainings and the origins of runs, and their alignment as text."""
