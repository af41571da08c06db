"""Operations of differentiable augmentation, their values, and draws of both that can be stored and replayed."""
