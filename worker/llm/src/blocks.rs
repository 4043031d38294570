//! The numbers of blocks, for formats whose pieces have none: what is said goes on in one block until something else comes.

/// What is said, when it is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Text,
    Thinking,
}

/// The blocks of one answer.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    next: u32,
    open: Option<(Said, u32)>,
}

impl Blocks {
    /// A block of its own, after which what is said begins another.
    pub(crate) fn apart(&mut self) -> u32 {
        self.open = None;
        self.next += 1;
        self.next - 1
    }

    /// The block that text of this sort goes on in.
    pub(crate) fn saying(&mut self, said: Said) -> u32 {
        match self.open {
            Some((last, block)) if last == said => block,
            _ => {
                let block = self.apart();
                self.open = Some((said, block));
                block
            }
        }
    }

    /// What is said next begins another block, even if it is of the same sort.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_and_a_close_begin_another_block() {
        let mut blocks = Blocks::default();
        assert_eq!([blocks.saying(Said::Thinking), blocks.saying(Said::Thinking)], [0, 0]);
        assert_eq!([blocks.saying(Said::Text), blocks.apart(), blocks.saying(Said::Text)], [1, 2, 3]);
        blocks.close();
        assert_eq!(blocks.saying(Said::Text), 4);
    }
}
