"""Networks that only training needs: discriminators, VGG19, face recognisers, landmark networks."""
