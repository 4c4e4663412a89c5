"""Ray: item-safe actors, pools, layouts, the resumable stream, the life of a job, progress and cost."""
