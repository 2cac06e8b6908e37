"""Images and masks: from any source to one prepared file per data set."""
