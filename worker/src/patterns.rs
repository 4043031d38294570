//! The regular expressions of an agent and its sub-agents, compiled within one bound: each by itself is small, but an agent may have
//! many, and a worker many sessions.

use regex::{Regex, RegexBuilder};

/// Of an agent and its sub-agents. At each bound the agent is refused.
const PATTERNS_MAX: usize = 512;
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a compiled pattern may take, and counts for: the first that is enough. The last keeps `(a{1000}){1000}` from taking all memory.
const SIZES: [usize; 3] = [16 * 1024, 64 * 1024, 256 * 1024];
/// Bytes of the cache that a search may use.
const CACHE_BYTES_MAX: usize = 256 * 1024;

/// What is left of the bound.
pub(crate) struct Patterns {
    patterns_left: usize,
    bytes_left: usize,
}

impl Default for Patterns {
    fn default() -> Self {
        Self { patterns_left: PATTERNS_MAX, bytes_left: BYTES_MAX }
    }
}

impl Patterns {
    /// Fails with what is wrong with the pattern. That it is one of this dialect, the caller knows or is told here.
    pub(crate) fn compile(&mut self, pattern: &str) -> Result<Regex, String> {
        let left = self.patterns_left.checked_sub(1);
        self.patterns_left = left.ok_or_else(|| format!("is one of more than {PATTERNS_MAX}"))?;
        for size in SIZES {
            let built = RegexBuilder::new(pattern).size_limit(size).dfa_size_limit(CACHE_BYTES_MAX).build();
            match built {
                Ok(regex) => {
                    let left = self.bytes_left.checked_sub(size);
                    self.bytes_left =
                        left.ok_or_else(|| format!("makes all take more than {BYTES_MAX} bytes when compiled"))?;
                    return Ok(regex);
                }
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(_) => return Err("is no regular expression of this dialect".to_owned()),
            }
        }
        let [.., most] = SIZES;
        Err(format!("takes more than {most} bytes when compiled"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(pattern: &str) -> (usize, String) {
        let mut patterns = Patterns::default();
        for number in 0.. {
            if let Err(problem) = patterns.compile(pattern) {
                return (number, problem);
            }
        }
        unreachable!("there is a bound")
    }

    #[test]
    fn all_together_are_bounded_by_their_number_and_by_what_they_take() {
        assert_eq!(compiled("x"), (512, "is one of more than 512".to_owned()));
        let (number, problem) = compiled(r"\w{3}");
        assert!(number == 32 || number == 128, "{number}");
        assert_eq!(problem, "makes all take more than 8388608 bytes when compiled");
        assert_eq!(compiled("(a{1000}){1000}"), (0, "takes more than 262144 bytes when compiled".to_owned()));
        assert_eq!(compiled("("), (0, "is no regular expression of this dialect".to_owned()));
    }
}
