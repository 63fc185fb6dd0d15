/// The quantum Fourier transform, phase estimation, and Shor's algorithm, which uses both.
import Std.Arrays.Most, Std.Arrays.Tail;
import Std.Convert.IntAsDouble;
import Std.Math.PI, Std.Math.ExpModI, Std.Math.InverseModI;

/// The Fourier transform of a little-endian register, without the swaps: qubit j gets the phase 2π b / 2^(j+1).
operation Fourier(register : Qubit[]) : Unit is Adj + Ctl {
    for j in Length(register) - 1..-1..0 {
        H(register[j]);
        for k in j - 1..-1..0 {
            Controlled R1([register[k]], (PI() / IntAsDouble(1 <<< (j - k)), register[j]));
        }
    }
}

/// Estimates the phase (in turns) that a gate gives to its eigenstate, to `bits` binary digits. Returns phase × 2^bits, rounded
/// randomly: P(y) = (sin(2^bits π d) / (2^bits sin(π d)))², with d = phase - y/2^bits.
operation EstimatePhase(bits : Int, phase : Double) : Int {
    use (register, eigenstate) = (Qubit[bits], Qubit());
    X(eigenstate);
    ApplyToEach(H, register);
    for j in 0..bits - 1 {
        // After this, qubit j has the phase 2π (phase 2^bits) / 2^(j+1), which is the Fourier transform of phase × 2^bits.
        Controlled R1([register[j]], (2.0 * PI() * phase * IntAsDouble(1 <<< (bits - 1 - j)), eigenstate));
    }
    Adjoint Fourier(register);
    Reset(eigenstate);
    return MeasureInteger(register);
}

// Shor's algorithm with 2n + 3 qubits: S. Beauregard, "Circuit for Shor's algorithm using 2n+3 qubits", arXiv:quant-ph/0205095.

/// Adds a number to a register in Fourier space (T. Draper, arXiv:quant-ph/0008033).
operation Add(number : Int, register : Qubit[]) : Unit is Adj + Ctl {
    for j in 0..Length(register) - 1 {
        R1(2.0 * PI() * IntAsDouble(number) / IntAsDouble(1 <<< (j + 1)), register[j]);
    }
}

/// Adds a number modulo `modulus` to a register in Fourier space (figure 5), if all controls are One. `spare` is Zero before and after.
operation AddModulo(controls : Qubit[], number : Int, modulus : Int, register : Qubit[], spare : Qubit) : Unit is Adj {
    let sign = Tail(register);
    Controlled Add(controls, (number, register));
    Adjoint Add(modulus, register);
    within {
        Adjoint Fourier(register);
    } apply {
        CNOT(sign, spare);
    }
    Controlled Add([spare], (modulus, register));
    Controlled Adjoint Add(controls, (number, register));
    within {
        Adjoint Fourier(register);
        X(sign);
    } apply {
        CNOT(sign, spare);
    }
    Controlled Add(controls, (number, register));
}

/// b → b + factor x mod modulus, if control is One (figure 6).
operation MultiplyAdd(control : Qubit, factor : Int, modulus : Int, x : Qubit[], b : Qubit[], spare : Qubit) : Unit is Adj {
    within {
        Fourier(b);
    } apply {
        for i in 0..Length(x) - 1 {
            AddModulo([control, x[i]], (factor <<< i) % modulus, modulus, b, spare);
        }
    }
}

/// x → factor x mod modulus, if control is One (figure 7). b and `spare` are Zero before and after.
operation Multiply(control : Qubit, factor : Int, modulus : Int, x : Qubit[], b : Qubit[], spare : Qubit) : Unit {
    MultiplyAdd(control, factor, modulus, x, b, spare);
    for i in 0..Length(x) - 1 {
        Controlled SWAP([control], (x[i], b[i]));
    }
    Adjoint MultiplyAdd(control, InverseModI(factor, modulus), modulus, x, b, spare);
}

/// Measures the phase s/r of x → base x mod modulus on |1⟩, where r is the order of base. Returns s/r × 2^(2n), rounded randomly.
/// One control qubit replaces 2n of them (figure 8). modulus must be less than 2^n.
operation Order(base : Int, modulus : Int, n : Int) : Int {
    use (control, x, b, spare) = (Qubit(), Qubit[n], Qubit[n + 1], Qubit());
    X(x[0]);
    mutable y = 0;
    for i in 0..2 * n - 1 {
        H(control);
        Multiply(control, ExpModI(base, 1 <<< (2 * n - 1 - i), modulus), modulus, x, b, spare);
        R1(-2.0 * PI() * IntAsDouble(y) / IntAsDouble(1 <<< (i + 1)), control);
        H(control);
        if MResetZ(control) == One {
            set y += 1 <<< i;
        }
    }
    ResetAll(x + b + [spare]);
    return y;
}
