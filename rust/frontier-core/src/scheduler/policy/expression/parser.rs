//! From text to instructions: a recursive-descent parser that checks types and counts the stack as it goes.

use super::run::MAX_STACK;
use super::{ExpressionError, Field, Op};

/// Deepest nesting of parentheses, calls and prefixes.
const MAX_NESTING: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Number,
    Truth,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Truth => "a truth value",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Number(f64),
    Name(String),
    Sign(&'static str),
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Number(number) => format!("{number}"),
            Self::Name(name) => format!("'{name}'"),
            Self::Sign(sign) => format!("'{sign}'"),
            Self::End => "the end".into(),
        }
    }
}

/// Two-character signs come first, so that they win.
const SIGNS: [&str; 13] = ["<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "(", ")", ","];

struct Parser {
    tokens: Vec<(Token, usize)>,
    next: usize,
    nesting: usize,
    depth: usize,
    ops: Vec<(Op, usize)>,
}

/// Compiles `text` to instructions, each with its place in the text.
pub(super) fn compile(text: &str) -> Result<Vec<(Op, usize)>, ExpressionError> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nesting: 0, depth: 0, ops: Vec::new() };
    let start = parser.position();
    let found = parser.either()?;
    demand(Type::Number, found, start)?;
    match parser.peek() {
        Token::End => Ok(parser.ops),
        other => fail(parser.position(), format!("{} is left over", other.shown())),
    }
}

fn fail<T>(position: usize, message: impl Into<String>) -> Result<T, ExpressionError> {
    Err(ExpressionError { position, message: message.into() })
}

fn demand(wanted: Type, found: Type, position: usize) -> Result<(), ExpressionError> {
    if wanted == found {
        return Ok(());
    }
    fail(position, format!("must be {}, is {}", wanted.name(), found.name()))
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, ExpressionError> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        let first = chars[at];
        if first.is_ascii_whitespace() {
            at += 1;
        } else if first.is_ascii_digit() || first == '.' {
            let mut digits = String::new();
            while let Some(&next) = chars.get(at) {
                let exponent_sign = matches!(next, '+' | '-') && digits.ends_with(['e', 'E']);
                if !(next.is_ascii_alphanumeric() || next == '.' || next == '_' || exponent_sign) {
                    break;
                }
                digits.push(next);
                at += 1;
            }
            match digits.replace('_', "").parse::<f64>() {
                Ok(number) if number.is_finite() => found.push((Token::Number(number), start)),
                _ => return fail(start, format!("'{digits}' is no number")),
            }
        } else if first.is_ascii_alphabetic() || first == '_' {
            while chars.get(at).is_some_and(|next| next.is_ascii_alphanumeric() || *next == '_') {
                at += 1;
            }
            found.push((Token::Name(chars[start..at].iter().collect()), start));
        } else {
            let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) else {
                return fail(start, format!("'{first}' has no meaning here"));
            };
            found.push((Token::Sign(sign), start));
            at += sign.len();
        }
    }
    found.push((Token::End, chars.len()));
    Ok(found)
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    fn position(&self) -> usize {
        self.tokens[self.next].1
    }

    fn take_sign(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        let Token::Sign(sign) = *self.peek() else { return None };
        let taken = signs.contains(&sign).then_some(sign)?;
        self.next += 1;
        Some(taken)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let taken = matches!(self.peek(), Token::Name(name) if name == word);
        self.next += usize::from(taken);
        taken
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), ExpressionError> {
        if self.take_sign(&[sign]).is_some() {
            return Ok(());
        }
        fail(self.position(), format!("expected '{sign}', found {}", self.peek().shown()))
    }

    /// Appends an instruction that takes `operands` values and leaves one.
    fn emit(&mut self, op: Op, operands: usize, position: usize) -> Result<(), ExpressionError> {
        self.depth = self.depth + 1 - operands;
        if self.depth > MAX_STACK {
            return fail(position, format!("needs more than {MAX_STACK} values at once; simplify it"));
        }
        self.ops.push((op, position));
        Ok(())
    }

    fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, ExpressionError>,
    ) -> Result<T, ExpressionError> {
        if self.nesting == MAX_NESTING {
            return fail(self.position(), format!("is nested more than {MAX_NESTING} deep"));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn either(&mut self) -> Result<Type, ExpressionError> {
        self.words("or", Op::Or, Self::both)
    }

    fn both(&mut self) -> Result<Type, ExpressionError> {
        self.words("and", Op::And, Self::negation)
    }

    fn words(
        &mut self,
        word: &str,
        op: Op,
        part: fn(&mut Self) -> Result<Type, ExpressionError>,
    ) -> Result<Type, ExpressionError> {
        let start = self.position();
        let first = part(self)?;
        loop {
            let at = self.position();
            if !self.take_word(word) {
                return Ok(first);
            }
            demand(Type::Truth, first, start)?;
            let right = self.position();
            let found = part(self)?;
            demand(Type::Truth, found, right)?;
            self.emit(op, 2, at)?;
        }
    }

    fn negation(&mut self) -> Result<Type, ExpressionError> {
        let at = self.position();
        if !self.take_word("not") {
            return self.comparison();
        }
        let start = self.position();
        let found = self.nested(Self::negation)?;
        demand(Type::Truth, found, start)?;
        self.emit(Op::Not, 1, at)?;
        Ok(Type::Truth)
    }

    fn comparison(&mut self) -> Result<Type, ExpressionError> {
        let start = self.position();
        let left = self.sum()?;
        let at = self.position();
        let Some(sign) = self.take_sign(&["<=", ">=", "==", "!=", "<", ">"]) else { return Ok(left) };
        demand(Type::Number, left, start)?;
        let right = self.position();
        let found = self.sum()?;
        demand(Type::Number, found, right)?;
        match sign {
            "<" => self.emit(Op::Less, 2, at)?,
            "<=" => self.emit(Op::AtMost, 2, at)?,
            ">" => self.emit(Op::More, 2, at)?,
            ">=" => self.emit(Op::AtLeast, 2, at)?,
            "==" => self.emit(Op::Equal, 2, at)?,
            _ => {
                self.emit(Op::Equal, 2, at)?;
                self.emit(Op::Not, 1, at)?;
            }
        }
        Ok(Type::Truth)
    }

    fn sum(&mut self) -> Result<Type, ExpressionError> {
        self.signs(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Type, ExpressionError> {
        self.signs(&["*", "/"], Self::prefixed)
    }

    fn signs(
        &mut self,
        signs: &[&'static str],
        part: fn(&mut Self) -> Result<Type, ExpressionError>,
    ) -> Result<Type, ExpressionError> {
        let start = self.position();
        let first = part(self)?;
        loop {
            let at = self.position();
            let Some(sign) = self.take_sign(signs) else { return Ok(first) };
            demand(Type::Number, first, start)?;
            let right = self.position();
            let found = part(self)?;
            demand(Type::Number, found, right)?;
            let op = match sign {
                "+" => Op::Add,
                "-" => Op::Subtract,
                "*" => Op::Multiply,
                _ => Op::Divide,
            };
            self.emit(op, 2, at)?;
        }
    }

    fn prefixed(&mut self) -> Result<Type, ExpressionError> {
        let at = self.position();
        if self.take_sign(&["-"]).is_none() {
            return self.atom();
        }
        let start = self.position();
        let found = self.nested(Self::prefixed)?;
        demand(Type::Number, found, start)?;
        self.emit(Op::Negate, 1, at)?;
        Ok(Type::Number)
    }

    fn atom(&mut self) -> Result<Type, ExpressionError> {
        let at = self.position();
        let token = self.peek().clone();
        match token {
            Token::Number(number) => {
                self.next += 1;
                self.emit(Op::Number(number), 0, at)?;
                Ok(Type::Number)
            }
            Token::Sign("(") => {
                self.next += 1;
                let found = self.nested(Self::either)?;
                self.expect(")")?;
                Ok(found)
            }
            Token::Name(name) => {
                self.next += 1;
                self.named(&name, at)
            }
            other => fail(at, format!("expected a value, found {}", other.shown())),
        }
    }

    fn named(&mut self, name: &str, at: usize) -> Result<Type, ExpressionError> {
        match name {
            "min" => self.fold(Op::Min, at),
            "max" => self.fold(Op::Max, at),
            "abs" => {
                self.expect("(")?;
                self.argument(Type::Number)?;
                self.expect(")")?;
                self.emit(Op::Abs, 1, at)?;
                Ok(Type::Number)
            }
            "if" => {
                self.expect("(")?;
                self.argument(Type::Truth)?;
                self.expect(",")?;
                self.argument(Type::Number)?;
                self.expect(",")?;
                self.argument(Type::Number)?;
                self.expect(")")?;
                self.emit(Op::Select, 3, at)?;
                Ok(Type::Number)
            }
            _ => {
                let Some((_, field)) = Field::ALL.into_iter().find(|(known, _)| *known == name) else {
                    let known: Vec<&str> = Field::ALL.iter().map(|(known, _)| *known).collect();
                    let message = format!("'{name}' is no field (allowed: {})", known.join(", "));
                    return fail(at, message);
                };
                self.emit(Op::Load(field), 0, at)?;
                Ok(Type::Number)
            }
        }
    }

    fn argument(&mut self, wanted: Type) -> Result<(), ExpressionError> {
        let start = self.position();
        let found = self.nested(Self::either)?;
        demand(wanted, found, start)
    }

    /// Parses the arguments of `min` or `max`.
    fn fold(&mut self, op: Op, at: usize) -> Result<Type, ExpressionError> {
        self.expect("(")?;
        self.argument(Type::Number)?;
        self.expect(",")?;
        loop {
            self.argument(Type::Number)?;
            self.emit(op, 2, at)?;
            if self.take_sign(&[","]).is_none() {
                break;
            }
        }
        self.expect(")")?;
        Ok(Type::Number)
    }
}
