/// A state-vector simulator, and circuits on it. Qubit 0 is the highest bit of an amplitude's index, as in Q#'s dumps.
module Bramble.Quantum

/// The 2^n amplitudes of n qubits: real and imaginary parts, 16 bytes each.
type State =
    { Qubits: int
      Re: float[]
      Im: float[] }

/// A 2 × 2 matrix, row by row, each entry with its real and imaginary part.
type Gate =
    { A: float * float
      B: float * float
      C: float * float
      D: float * float }

/// |0…0⟩
let zero qubits =
    let size = 1 <<< qubits
    { Qubits = qubits
      Re = Array.init size (fun i -> if i = 0 then 1.0 else 0.0)
      Im = Array.zeroCreate size }

let private half = sqrt 0.5
let h = { A = half, 0.0; B = half, 0.0; C = half, 0.0; D = -half, 0.0 }
let x = { A = 0.0, 0.0; B = 1.0, 0.0; C = 1.0, 0.0; D = 0.0, 0.0 }
let z = { A = 1.0, 0.0; B = 0.0, 0.0; C = 0.0, 0.0; D = -1.0, 0.0 }

let ry angle =
    let c, s = cos (angle / 2.0), sin (angle / 2.0)
    { A = c, 0.0; B = -s, 0.0; C = s, 0.0; D = c, 0.0 }

let rz angle =
    let c, s = cos (angle / 2.0), sin (angle / 2.0)
    { A = c, -s; B = 0.0, 0.0; C = 0.0, 0.0; D = c, s }

/// diag(1, e^(i angle))
let r1 angle =
    { A = 1.0, 0.0; B = 0.0, 0.0; C = 0.0, 0.0; D = cos angle, sin angle }

/// Applies a gate to a qubit where all controls are One, in place.
let apply (controls: int list) gate target state =
    let bit qubit = 1 <<< (state.Qubits - 1 - qubit)
    let mask = controls |> List.sumBy bit
    let flip = bit target
    let (ar, ai), (br, bi), (cr, ci), (dr, di) = gate.A, gate.B, gate.C, gate.D

    for i in 0 .. state.Re.Length - 1 do
        if i &&& flip = 0 && i &&& mask = mask then
            let j = i ||| flip
            let ur, ui, vr, vi = state.Re[i], state.Im[i], state.Re[j], state.Im[j]
            state.Re[i] <- ar * ur - ai * ui + br * vr - bi * vi
            state.Im[i] <- ar * ui + ai * ur + br * vi + bi * vr
            state.Re[j] <- cr * ur - ci * ui + dr * vr - di * vi
            state.Im[j] <- cr * ui + ci * ur + dr * vi + di * vr

/// Returns the probability of an outcome of all qubits together.
let probability index state =
    state.Re[index] * state.Re[index] + state.Im[index] * state.Im[index]

/// Returns (|0…0⟩ + |1…1⟩)/√2, which is a Bell pair for two qubits.
let ghz qubits =
    let state = zero qubits
    apply [] h 0 state

    for i in 1 .. qubits - 1 do
        apply [ i - 1 ] x i state

    state

/// Returns the state after a number of iterations of Grover's search. The lowest bit of the marked number is qubit 0.
let grover qubits marked iterations =
    let state = zero qubits
    let all = [ 0 .. qubits - 1 ]
    let each gate which = which |> List.iter (fun qubit -> apply [] gate qubit state)
    let flipAllOnes () = apply [ 0 .. qubits - 2 ] z (qubits - 1) state
    let zeros = all |> List.filter (fun i -> (marked >>> i) &&& 1 = 0)
    each h all

    for _ in 1..iterations do
        each x zeros
        flipAllOnes ()
        each x zeros
        each h all
        each x all
        flipAllOnes ()
        each x all
        each h all

    state
