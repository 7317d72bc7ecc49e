"""What every method, codec and recipe must hold, as tests that run on anybody's method.

    pytest --pyargs ddengine.contract                                 every method of this program
    pytest --pyargs ddengine.contract --recipe dm/digits_ipc1         the method of one recipe
    pytest --pyargs ddengine.contract --recipe package.module:recipe  a method of one's own package

A recipe is all that the suite asks for: it is made small (`ObjectiveConfig.small`), given 200
digits, two short experts or teachers where it reads some, and run.
"""
