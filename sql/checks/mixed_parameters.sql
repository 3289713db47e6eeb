-- mixed_parameters: all scores of a run were computed with one set of parameters.
-- grain: one row per set of parameters, if there is more than one
-- column n_axes [axes]: axes K
-- column n_steps [steps]: ODE steps N
-- column timestep [training timesteps]: timestep of the first step
-- column estimator: edge | volume | ...
-- column delta [l2]: perturbation length, in pixel values -1 ... 1
-- column n_scores [scores]: scores with them
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
ORDER BY n_scores DESC, n_axes ASC, n_steps ASC, timestep ASC, estimator ASC, delta ASC
