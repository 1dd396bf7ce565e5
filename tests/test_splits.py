from project.splits import stratified_split


def test_an_added_file_moves_hardly_any_other():
    samples = [(f"{i}.png", "a") for i in range(1000)]
    before = set(stratified_split(samples, 0.2, seed=0)[1])
    after = set(stratified_split([*samples, ("new.png", "a")], 0.2, seed=0)[1])
    assert len(before) == len(after) == 200 and len(before ^ after) <= 2
