/// Algorithms with oracles: Deutsch-Jozsa and Grover.
import Std.Arrays.Most, Std.Arrays.Tail;

/// Deutsch-Jozsa: queries a function of `qubits` bits (see Parity) once. Returns whether it is constant; otherwise it is balanced.
operation IsConstant(qubits : Int, mask : Int, flip : Bool) : Bool {
    use (register, target) = (Qubit[qubits], Qubit());
    within {
        X(target);
        H(target);
    } apply {
        within {
            ApplyToEachA(H, register);
        } apply {
            Parity(register, mask, flip, target);
        }
    }
    return MeasureInteger(register) == 0;
}

/// Computes f(x) = parity of x AND mask, flipped or not: constant for mask 0, otherwise balanced.
operation Parity(register : Qubit[], mask : Int, flip : Bool, target : Qubit) : Unit is Adj + Ctl {
    for i in 0..Length(register) - 1 {
        if (mask >>> i) % 2 == 1 {
            CNOT(register[i], target);
        }
    }
    if flip {
        X(target);
    }
}

/// Grover: searches `marked` among 2^qubits numbers with a number of iterations. Returns whether it was found.
/// Theory: with probability sin²((2 iterations + 1) θ), sin θ = 2^(-qubits/2).
operation Finds(qubits : Int, marked : Int, iterations : Int) : Bool {
    use register = Qubit[qubits];
    Grover(register, marked, iterations);
    return MeasureInteger(register) == marked;
}

operation Grover(register : Qubit[], marked : Int, iterations : Int) : Unit {
    ApplyToEach(H, register);
    for _ in 1..iterations {
        // The oracle changes the sign of the marked number.
        within {
            for i in 0..Length(register) - 1 {
                if (marked >>> i) % 2 == 0 {
                    X(register[i]);
                }
            }
        } apply {
            Controlled Z(Most(register), Tail(register));
        }
        // Reflection about the uniform superposition.
        within {
            ApplyToEachA(H, register);
            ApplyToEachA(X, register);
        } apply {
            Controlled Z(Most(register), Tail(register));
        }
    }
}
