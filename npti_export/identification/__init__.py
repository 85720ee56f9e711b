"""From personas and questions to neurons: elicit → measure → select, in that order."""
