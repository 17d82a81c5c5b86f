"""How good a model is: reenactment of a split, control of eyes and lips, shoulders, jitter; as JSON and as a page.

    python -m training evaluate --weights runs/base --data DATASET --split test --output evaluation/

`selection` says which frames take part, `reenactment` and `control` let the model make pictures, `pixels`, `lpips`,
`fid` and `faces` measure them, `catalogue` defines every figure, `results` puts them together, `report` shows them.
"""
