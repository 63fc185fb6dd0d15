/// Entangled qubits: Bell pairs, GHZ states, and teleportation.
import Std.Convert.IntAsDouble;

/// Prepares (|00⟩ + |11⟩)/√2 from |00⟩.
operation Entangle(a : Qubit, b : Qubit) : Unit is Adj + Ctl {
    H(a);
    CNOT(a, b);
}

/// Prepares a pair and measures each half along an axis of its own: angles (radians) from z towards x.
/// Returns whether the two agree. Theory: with probability cos²((alice - bob) / 2).
operation Agree(alice : Double, bob : Double) : Bool {
    use (a, b) = (Qubit(), Qubit());
    Entangle(a, b);
    Ry(-alice, a);
    Ry(-bob, b);
    return MResetZ(a) == MResetZ(b);
}

/// Prepares (|0…0⟩ + |1…1⟩)/√2 and returns how many qubits are measured as One: none or all of them.
operation GhzOnes(qubits : Int) : Int {
    use register = Qubit[qubits];
    Ghz(register);
    mutable ones = 0;
    for qubit in register {
        if MResetZ(qubit) == One {
            set ones += 1;
        }
    }
    return ones;
}

/// Prepares the same state and measures each qubit along x. Returns whether the number of Ones is even: always for a
/// superposition, but half of the time for a mixture, which GhzOnes cannot distinguish from it.
operation GhzEven(qubits : Int) : Bool {
    use register = Qubit[qubits];
    Ghz(register);
    mutable even = true;
    for qubit in register {
        if MResetX(qubit) == One {
            set even = not even;
        }
    }
    return even;
}

operation Ghz(register : Qubit[]) : Unit is Adj + Ctl {
    H(register[0]);
    for i in 1..Length(register) - 1 {
        CNOT(register[i - 1], register[i]);
    }
}

/// Teleports the state that Ry(theta), then Rz(phi) make of |0⟩, with one pair and two classical bits. Returns whether the qubit
/// that arrived is measured as One along z. With `undo` the preparation is undone first, so it must be Zero.
operation Teleport(theta : Double, phi : Double, undo : Bool) : Bool {
    use (message, here, there) = (Qubit(), Qubit(), Qubit());
    Ry(theta, message);
    Rz(phi, message);
    Entangle(here, there);
    Adjoint Entangle(message, here);
    if MResetZ(here) == One {
        X(there);
    }
    if MResetZ(message) == One {
        Z(there);
    }
    if undo {
        Rz(-phi, there);
        Ry(-theta, there);
    }
    return MResetZ(there) == One;
}
