-- mixed_parameters: all scores of a run were computed with one set of parameters.
-- grain: one row per set of parameters, if there is more than one
-- column n_axes: axes K
-- column n_steps: ODE steps N
-- column timestep: timestep of the first step
-- column estimator: edge | volume | ...
-- column delta: perturbation length
-- column n_scores: scores with them
SELECT
    n_axes,
    n_steps,
    timestep,
    estimator,
    delta,
    count(*) AS n_scores
FROM scores
GROUP BY n_axes, n_steps, timestep, estimator, delta
QUALIFY count(*) OVER () > 1
