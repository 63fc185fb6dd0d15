/// Errors, and a code that corrects one of them.
import Std.Math.ArcSin, Std.Math.Sqrt;

/// A qubit in |0⟩ goes through so many X gates, each followed by whatever noise the simulator adds.
/// Returns whether it is measured wrong.
operation Decays(gates : Int) : Bool {
    use qubit = Qubit();
    for _ in 1..gates {
        X(qubit);
    }
    return (MResetZ(qubit) == One) != (gates % 2 == 1);
}

/// A qubit (One or Zero) is stored in three, each is flipped with probability p, and the majority, found from two
/// parities without looking at the qubits themselves, puts one flip right. Returns whether it is wrong afterwards.
/// Theory: with probability 3p² - 2p³, p without the code.
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

/// True with probability p. Not Std.Random: its generator gets the same seed as the simulator's, and would foretell what is measured.
operation Happens(p : Double) : Bool {
    use coin = Qubit();
    Ry(2.0 * ArcSin(Sqrt(p)), coin);
    return MResetZ(coin) == One;
}
