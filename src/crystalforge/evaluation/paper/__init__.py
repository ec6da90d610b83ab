"""The figures and tables of the paper (arXiv 2504.02367), from the per-crystal tables of any evaluations.

Figure 2: E_hull before and after fine-tuning; 3: the courses of training; 4: stable crystals by space group; 5: unique,
novel and S.U.N. crystals; 6: band gap against dielectric constant. Table S2: candidates; S3: retrieval of known
crystals.

Deviations: the fourteen space groups of figure 4 are the two commonest of each crystal system among the baseline's own
samples, since which ones are worth showing depends on the training set; counts have intervals; whatever an evaluation
did not measure (a reward without E_hull or without properties) is left out and said to be.
"""
