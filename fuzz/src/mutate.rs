//! Mutations of inputs, the same for the same seed.

/// Numbers that are no secret: xorshift64*.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { usize::try_from(self.any() >> 1).unwrap_or(0) % end }
    }
}

/// Values at which arithmetic and lengths go wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Words at which texts go wrong.
const WORDS: [&str; 16] = [
    "",
    "/",
    "../",
    "..",
    "\0",
    "\n",
    "%00",
    "\u{202e}",
    "-1",
    "9999999999999999999999",
    "null",
    "{}",
    "[]",
    "\"",
    "sha256:",
    "1e309",
];

/// Inputs beyond this length are cut.
const LONGEST: usize = 64 << 10;

/// Makes a new input of one of `corpus` by some changes.
pub fn mutate(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = corpus.get(numbers.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..=numbers.below(6) {
        change(&mut input, corpus, numbers);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], numbers: &mut Numbers) {
    let at = numbers.below(input.len());
    let some = |input: &[u8], numbers: &mut Numbers| {
        let from = numbers.below(input.len());
        let length = numbers.below((input.len() - from).min(600)) + 1;
        from..(from + length).min(input.len())
    };
    match numbers.below(10) {
        0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
        1 if !input.is_empty() => input[at] = numbers.any() as u8,
        2 => input.insert(at, numbers.any() as u8),
        3 if !input.is_empty() => {
            let range = some(input, numbers);
            input.drain(range);
        }
        4 if !input.is_empty() => {
            let piece = input[some(input, numbers)].to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            // A number of some width and order, over what is there.
            let edge = EDGES[numbers.below(EDGES.len())];
            let width = [1, 2, 3, 4, 8][numbers.below(5)];
            let mut bytes = edge.to_be_bytes()[8 - width..].to_vec();
            if numbers.below(2) == 0 {
                bytes.reverse();
            }
            let end = (at + width).min(input.len());
            input.splice(at..end, bytes);
        }
        6 => {
            let word = WORDS[numbers.below(WORDS.len())].bytes();
            input.splice(at..at, word);
        }
        7 => {
            // A decimal or octal number in a text: another one in its place.
            let digits = |byte: &u8| byte.is_ascii_digit();
            if let Some(from) = input[at..].iter().position(digits).map(|more| at + more) {
                let length = input[from..].iter().take_while(|byte| digits(byte)).count();
                let edge = EDGES[numbers.below(EDGES.len())].to_string();
                input.splice(from..from + length, edge.bytes());
            }
        }
        8 => {
            let Some(other) = corpus.get(numbers.below(corpus.len())).filter(|other| !other.is_empty())
            else {
                return;
            };
            let piece = other[some(other, numbers)].to_vec();
            input.splice(at..at, piece);
        }
        _ => input.truncate(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let corpus = [b"one 123".to_vec(), b"two".to_vec(), Vec::new()];
        let run = |seed| {
            let mut numbers = Numbers::new(seed);
            (0..2000).map(|_| mutate(&corpus, &mut numbers)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let different: std::collections::HashSet<_> = run(3).into_iter().collect();
        assert!(different.len() > 1000, "{}", different.len());
    }
}
