//! What the ranks of a layer are compared by, and priced by.

use super::straggler::RankPrices;
use crate::fidelity::fused_moe::FusedMoe;

/// What the ranks of a layer are compared by.
#[derive(Clone, Debug)]
pub struct Ranks {
    /// The experts.
    pub kernel: FusedMoe,
    /// Rows of an even exchange per token that a rank receives.
    pub rows_per_token: f64,
    /// Rows of the even exchange in which every rank sends what ranks send here on average.
    pub least_rows: f64,
    /// Time of the exchanges over so many rows.
    pub at_least_s: f64,
    /// Time per row more.
    pub per_row_s: f64,
}

impl Ranks {
    /// Returns the rows of the even exchange that takes as long as a rank does that so many tokens reach.
    pub fn rows(&self, tokens: f64) -> f64 {
        (tokens * self.rows_per_token).max(self.least_rows)
    }
}

impl RankPrices for Ranks {
    fn kernel(&self) -> &FusedMoe {
        &self.kernel
    }

    fn exchanges_s(&self, tokens: f64) -> f64 {
        self.at_least_s + (self.rows(tokens) - self.least_rows) * self.per_row_s
    }
}
