"""Tables of a report about answers: how varied they are, and what became of what was retrieved."""
