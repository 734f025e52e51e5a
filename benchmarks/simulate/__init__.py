"""`python -m benchmarks.simulate`: the edge's decisions in a federation that is only simulated.

The decisions are those of `fedproxy.decide`, unchanged: they take time and chance as arguments, and get both
from here. What is simulated is the rest: who launches what and when, members with their slots, nodes, images
and builds, and what goes wrong with them. The same scenario and seed give the same result anywhere.

    scenario    what a file may say, with every fault at once
    chance      tables that a random number is looked up in
    visitors    the launches of a scenario      recorded    the launches of a file
    hub         a member as it is, not as the edges see it
    policies    what is compared                run         one policy with the launches of one seed
    measures    what is measured, each defined where it is computed
    show        tables, JSON                    reference   docs/simulation.md
"""
