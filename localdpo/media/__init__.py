"Videos in and out, contact sheets, and one look for all figures."
