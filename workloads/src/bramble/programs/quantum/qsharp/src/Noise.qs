/// Errors, and a code that corrects one of them.
import Std.Math.ArcSin, Std.Math.Sqrt;

/// Applies a number of X gates to a qubit in |0⟩, each followed by the noise that the simulator adds.
/// Returns whether the measured value is wrong.
operation Decays(gates : Int) : Bool {
    use qubit = Qubit();
    for _ in 1..gates {
        X(qubit);
    }
    return (MResetZ(qubit) == One) != (gates % 2 == 1);
}

/// Stores a qubit in three (coded) or alone, flips each with probability p, and corrects one flip by two parities, without
/// measuring the qubits themselves. Returns whether the measured value is wrong.
/// Theory: the state is flipped with probability 3p² - 2p³, and p without the code.
operation Stored(p : Double, coded : Bool) : Bool {
    use (data, helpers, parities) = (Qubit(), Qubit[2], Qubit[2]);
    // A state that a classical bit cannot hold.
    Ry(1.0, data);
    if coded { Encode(data, helpers); }
    for qubit in [data] + (coded ? helpers | []) {
        if Happens(p) {
            X(qubit);
        }
    }
    if coded {
        CNOT(data, parities[0]);
        CNOT(helpers[0], parities[0]);
        CNOT(data, parities[1]);
        CNOT(helpers[1], parities[1]);
        let syndrome = (MResetZ(parities[0]), MResetZ(parities[1]));
        if syndrome == (One, One) { X(data); }
        if syndrome == (One, Zero) { X(helpers[0]); }
        if syndrome == (Zero, One) { X(helpers[1]); }
        Adjoint Encode(data, helpers);
    }
    Ry(-1.0, data);
    let wrong = MResetZ(data) == One;
    ResetAll(helpers);
    return wrong;
}

operation Encode(data : Qubit, helpers : Qubit[]) : Unit is Adj {
    CNOT(data, helpers[0]);
    CNOT(data, helpers[1]);
}

/// Returns true with probability p. Std.Random cannot be used: its generator has the simulator's seed, so its numbers would be
/// correlated with the measurements.
operation Happens(p : Double) : Bool {
    use coin = Qubit();
    Ry(2.0 * ArcSin(Sqrt(p)), coin);
    return MResetZ(coin) == One;
}
