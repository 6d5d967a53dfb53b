//! Time over bytes, interpolated linearly between measured points in logarithms of both.
//!
//! Collectives are a staircase of protocols, which a table keeps and a smooth curve does not. Beyond the ends the
//! time goes on with the slope of the outermost interval, held between 0 (latency alone) and 1 (bandwidth alone):
//! two noisy neighbours must not make a small message dear, nor a large one cheap.

use super::refuse;
use crate::error::SimError;

/// A table of seconds over bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct LogTable {
    bytes: Vec<f32>,
    /// Logarithms of bytes and seconds.
    points: Vec<(f64, f64)>,
}

impl LogTable {
    /// Checks and takes at least two measured points.
    ///
    /// # Errors
    /// [`SimError::Pack`] if columns differ in length or have fewer than two values, if bytes are not positive,
    /// finite and strictly ascending, or seconds not positive and finite.
    pub fn new(bytes: Vec<f32>, seconds: &[f32]) -> Result<Self, SimError> {
        let (rows, times) = (bytes.len(), seconds.len());
        if rows != times || rows < 2 {
            let what = format!("x, seconds: {rows} and {times} values, must be as many, and at least 2");
            return Err(refuse(what));
        }
        for (name, values) in [("x", bytes.as_slice()), ("seconds", seconds)] {
            if let Some(at) = values.iter().position(|value| !(value.is_finite() && *value > 0.0)) {
                let value = values[at];
                return Err(refuse(format!("{name}[{at}]: was {value}, must be finite and greater than 0")));
            }
        }
        if let Some(at) = bytes.windows(2).position(|pair| pair[0] >= pair[1]) {
            let what = format!("x[{}]: was {}, must be greater than {}", at + 1, bytes[at + 1], bytes[at]);
            return Err(refuse(what));
        }
        let log = |value: f32| libm::log(f64::from(value));
        let points = bytes.iter().zip(seconds).map(|(&x, &y)| (log(x), log(y))).collect();
        Ok(Self { bytes, points })
    }

    /// Returns the time that `bytes` take; below one byte that of one byte.
    pub fn seconds(&self, bytes: f64) -> f64 {
        let x = libm::log(bytes.max(1.0));
        // The interval that holds x, else the outermost one.
        let right = self.points.partition_point(|point| point.0 <= x).clamp(1, self.points.len() - 1);
        let ((x0, y0), (x1, y1)) = (self.points[right - 1], self.points[right]);
        let slope = (y1 - y0) / (x1 - x0);
        let y = if x < x0 {
            y0 + slope.clamp(0.0, 1.0) * (x - x0)
        } else if x > x1 {
            y1 + slope.clamp(0.0, 1.0) * (x - x1)
        } else {
            y0 + slope * (x - x0)
        };
        libm::exp(y)
    }

    /// Returns the smallest and the largest measured message in bytes.
    pub fn range(&self) -> (f64, f64) {
        (f64::from(self.bytes[0]), f64::from(self.bytes[self.bytes.len() - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> LogTable {
        LogTable::new(vec![1024.0, 4096.0, 65_536.0], &[8e-6, 4e-6, 64e-6]).unwrap()
    }

    fn close(value: f64, expected: f64) -> bool {
        (value / expected - 1.0).abs() < 1e-6
    }

    #[test]
    fn points_are_met_and_between_them_it_is_a_power_law() {
        let table = table();
        for (bytes, seconds) in [(1024.0, 8e-6), (4096.0, 4e-6), (65_536.0, 64e-6)] {
            assert!(close(table.seconds(bytes), seconds));
        }
        assert!(close(table.seconds(2048.0), 8e-6 / 2.0_f64.sqrt()));
        assert!(close(table.seconds(16_384.0), 16e-6));
    }

    #[test]
    fn beyond_the_ends_a_slope_goes_on_between_latency_and_bandwidth() {
        // Time fell from the first to the second point: below the first it stays.
        assert!(close(table().seconds(16.0), 8e-6));
        assert!(close(table().seconds(131_072.0), 128e-6));
        let steep = LogTable::new(vec![10.0, 20.0], &[1e-6, 8e-6]).unwrap();
        assert!(close(steep.seconds(5.0), 0.5e-6));
        assert!(close(steep.seconds(40.0), 16e-6));
        let table = table();
        assert_eq!(table.range(), (1024.0, 65_536.0));
        for nothing in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(table.seconds(nothing).to_bits(), table.seconds(1.0).to_bits());
        }
    }

    #[test]
    fn tables_that_are_none_are_refused_with_their_place() {
        let cases: [(&[f32], &[f32], &str); 7] = [
            (&[1.0], &[1.0], "x, seconds: 1 and 1 values"),
            (&[1.0, 2.0], &[1.0], "x, seconds: 2 and 1 values"),
            (&[1.0, 1.0], &[1.0, 1.0], "x[1]: was 1, must be greater than 1"),
            (&[0.0, 1.0], &[1.0, 1.0], "x[0]: was 0"),
            (&[1.0, f32::NAN], &[1.0, 1.0], "x[1]: was NaN"),
            (&[1.0, f32::INFINITY], &[1.0, 1.0], "x[1]: was inf"),
            (&[1.0, 2.0], &[1.0, -1.0], "seconds[1]: was -1"),
        ];
        for (bytes, seconds, expected) in cases {
            let error = LogTable::new(bytes.to_vec(), seconds).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }
}
