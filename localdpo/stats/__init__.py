"How sure a comparison is: intervals, paired tests, rankings, agreement of raters, tables."
