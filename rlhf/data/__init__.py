"""Reading, checking and splitting demonstrations, preferences and prompts."""
