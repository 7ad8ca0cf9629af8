"What everything stands on: errors, paths, noise by address, journals, workers, locks."
