"""The ground floor: what every daemon needs and that knows neither CNI nor CSI."""
