//! The stack machine.

use super::{Field, Op};

/// Deepest stack; the parser refuses what needs more.
pub(super) const MAX_STACK: usize = 32;

/// Runs a program that the parser has made. Nothing here can fail: the parser has counted the stack.
pub(super) fn value(ops: &[Op], load: impl Fn(Field) -> f64) -> f64 {
    let mut stack = [0.0_f64; MAX_STACK];
    let mut depth = 0_usize;
    for &op in ops {
        match op {
            Op::Number(number) => {
                stack[depth] = number;
                depth += 1;
            }
            Op::Load(field) => {
                stack[depth] = load(field);
                depth += 1;
            }
            Op::Negate => stack[depth - 1] = -stack[depth - 1],
            Op::Abs => stack[depth - 1] = stack[depth - 1].abs(),
            Op::Not => stack[depth - 1] = truth(stack[depth - 1] == 0.0),
            Op::Select => {
                let chosen = if stack[depth - 3] == 0.0 { stack[depth - 1] } else { stack[depth - 2] };
                depth -= 2;
                stack[depth - 1] = chosen;
            }
            _ => {
                let (left, right) = (stack[depth - 2], stack[depth - 1]);
                depth -= 1;
                stack[depth - 1] = binary(op, left, right);
            }
        }
    }
    stack[0]
}

#[expect(clippy::float_cmp, reason = "equality is what the user asked for")]
fn binary(op: Op, left: f64, right: f64) -> f64 {
    match op {
        Op::Add => left + right,
        Op::Subtract => left - right,
        Op::Multiply | Op::And => left * right,
        Op::Divide => left / right,
        Op::Min => left.min(right),
        Op::Max | Op::Or => left.max(right),
        Op::Less => truth(left < right),
        Op::AtMost => truth(left <= right),
        Op::More => truth(left > right),
        Op::AtLeast => truth(left >= right),
        Op::Equal => truth(left == right),
        Op::Number(_) | Op::Load(_) | Op::Negate | Op::Not | Op::Abs | Op::Select => {
            unreachable!("Invariant: these take another number of operands")
        }
    }
}

fn truth(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}
