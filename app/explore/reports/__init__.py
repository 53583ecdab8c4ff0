"""What is told of the answers: the gallery of defects, the ledger of requirements."""
