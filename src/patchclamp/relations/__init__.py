"""What the model knows of a relation, as a linear map from its subjects to its objects."""
