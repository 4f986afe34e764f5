"""A healthy delta built anew from what a corrupt one still proves."""
