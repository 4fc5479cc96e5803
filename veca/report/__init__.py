"""Parts that all reports share: HTML templates, curves and facts about the machine."""
