"""The sections of a study's page: each module turns a part of the document into figures and tables."""
