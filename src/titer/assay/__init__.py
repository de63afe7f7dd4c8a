"""How immune a model is: the four immunization conditions (arXiv 2402.16382), made measurable."""
