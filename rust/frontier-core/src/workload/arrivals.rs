//! Open-loop arrival processes: moments that do not depend on how requests fare.

use super::laws::{Gamma, exponential};
use crate::error::SimError;
use crate::plan::workload::{ArrivalSpec, RateSegment};
use crate::rng::Stream;
use crate::time::{SimDuration, SimTime};

/// A checked arrival process and its stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    process: Process,
    stream: Stream,
    clock: Clock,
}

#[derive(Clone, Debug)]
enum Process {
    Poisson { mean_gap_s: f64 },
    Gamma(Gamma),
    Constant { gap_s: f64 },
    Burst,
    Piecewise(Piecewise),
}

impl Arrivals {
    /// Returns the process of a checked specification, or `None` for a closed loop, which is none.
    pub(super) fn new(spec: &ArrivalSpec, stream: Stream) -> Option<Self> {
        let process = match spec {
            ArrivalSpec::Poisson { rate_per_s } => Process::Poisson { mean_gap_s: 1.0 / rate_per_s },
            ArrivalSpec::Gamma { rate_per_s, cv } => {
                let variance = cv * cv;
                Process::Gamma(Gamma::new(1.0 / variance, variance / rate_per_s))
            }
            ArrivalSpec::Constant { rate_per_s } => Process::Constant { gap_s: 1.0 / rate_per_s },
            ArrivalSpec::Burst {} => Process::Burst,
            ArrivalSpec::Piecewise { segments, repeat } => {
                Process::Piecewise(Piecewise::new(segments, *repeat))
            }
            ArrivalSpec::ClosedLoop { .. } => return None,
        };
        Some(Self { process, stream, clock: Clock::default() })
    }

    /// Tells whether the process goes on for ever.
    pub(super) fn is_endless(&self) -> bool {
        match &self.process {
            Process::Piecewise(piecewise) => piecewise.is_endless(),
            _ => true,
        }
    }

    /// Returns the next arrival, not before the one returned last, or `None` once the process has ended.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`] past the end of simulated time.
    pub(super) fn next(&mut self) -> Result<Option<SimTime>, SimError> {
        let Self { process, stream, clock } = self;
        match process {
            Process::Poisson { mean_gap_s } => clock.advance(exponential(stream) * *mean_gap_s)?,
            Process::Gamma(law) => clock.advance(law.draw(stream))?,
            Process::Constant { gap_s } => clock.advance(*gap_s)?,
            Process::Burst => {}
            Process::Piecewise(piecewise) => {
                if !piecewise.advance(clock, exponential(stream))? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(clock.time))
    }
}

/// A moment in whole nanoseconds plus what rounding left over, so that sums of gaps do not drift: after any
/// number of gaps the clock is within 1 ns of their sum (up to the precision of one gap in `f64`).
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    time: SimTime,
    /// Exact time minus `time`, within half a nanosecond of 0.
    carry_s: f64,
}

impl Clock {
    fn advance(&mut self, gap_s: f64) -> Result<(), SimError> {
        let exact_s = (gap_s + self.carry_s).max(0.0);
        let whole = SimDuration::from_seconds(exact_s).map_err(|_| SimError::ClockOverflow)?;
        self.time = self.time.after(whole)?;
        self.carry_s = exact_s - whole.as_seconds();
        Ok(())
    }

    fn move_to(&mut self, time: SimTime) {
        self.time = self.time.max(time);
        self.carry_s = 0.0;
    }
}

/// A Poisson process with piecewise constant rate, exact: unit exponentials are spent on the integrated rate.
#[derive(Clone, Debug)]
struct Piecewise {
    segments: Vec<RateSegment>,
    repeat: bool,
    current: usize,
    current_end: SimTime,
    cycle: SimDuration,
    /// Expected arrivals per cycle.
    cycle_mass: f64,
}

impl Piecewise {
    fn new(segments: &[RateSegment], repeat: bool) -> Self {
        let mass = |s: &RateSegment| SimDuration(s.duration_ns).as_seconds() * s.rate_per_s;
        Self {
            segments: segments.to_vec(),
            repeat,
            current: 0,
            current_end: SimTime(segments[0].duration_ns),
            cycle: SimDuration(segments.iter().map(|s| s.duration_ns).sum()),
            cycle_mass: segments.iter().map(mass).sum(),
        }
    }

    fn is_endless(&self) -> bool {
        self.repeat || self.segments.last().is_some_and(|s| s.rate_per_s > 0.0)
    }

    /// Moves the clock on by `exposure` of the integrated rate; false if the rate is 0 from here on.
    fn advance(&mut self, clock: &mut Clock, exposure: f64) -> Result<bool, SimError> {
        let mut left = self.skip_cycles(clock, exposure)?;
        loop {
            let rate_per_s = self.segments[self.current].rate_per_s;
            if !self.repeat && self.current + 1 == self.segments.len() {
                if rate_per_s > 0.0 {
                    clock.advance(left / rate_per_s)?;
                }
                return Ok(rate_per_s > 0.0);
            }
            let remaining_s = (self.current_end.since(clock.time).as_seconds() - clock.carry_s).max(0.0);
            let mass = remaining_s * rate_per_s;
            if left < mass {
                clock.advance(left / rate_per_s)?;
                return Ok(true);
            }
            left -= mass;
            clock.move_to(self.current_end);
            self.current = (self.current + 1) % self.segments.len();
            self.current_end =
                self.current_end.after(SimDuration(self.segments[self.current].duration_ns))?;
        }
    }

    /// Skips whole cycles at once: short cycles of low rates would otherwise take ages. Returns what is left.
    fn skip_cycles(&mut self, clock: &mut Clock, exposure: f64) -> Result<f64, SimError> {
        if !self.repeat || exposure < self.cycle_mass {
            return Ok(exposure);
        }
        let cycles = (exposure / self.cycle_mass).floor();
        // The cast saturates, and 2^64 - 1 cycles of at least 1 ns overflow the clock or nearly so.
        let skip = SimDuration((cycles as u64).checked_mul(self.cycle.0).ok_or(SimError::ClockOverflow)?);
        clock.time = clock.time.after(skip)?;
        self.current_end = self.current_end.after(skip)?;
        Ok((exposure - cycles * self.cycle_mass).max(0.0))
    }
}

#[cfg(test)]
mod tests;
