"""Writers of simulated subjects in the formats of published data sets, for the tests of their readers."""
