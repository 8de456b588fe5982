// Opened from the disk, the search page may not fetch the pages it found: list them all the same.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
