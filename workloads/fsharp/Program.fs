/// Prints the amplitudes of a circuit as JSON: [[re, im], ...].
module Bramble.Program

open Bramble.Quantum

let private usage =
    "quantum bell | ghz QUBITS | grover QUBITS MARKED ITERATIONS | circuit QUBITS GATE...\n"
    + "GATE: h:Q x:Q z:Q ry:Q:ANGLE rz:Q:ANGLE r1:Q:ANGLE cx:CONTROL:Q ccx:CONTROL:CONTROL:Q"

/// Applies a gate in the notation of the usage text.
let private applyText state (text: string) =
    match List.ofArray (text.Split(':')) with
    | [ "h"; q ] -> apply [] h (int q) state
    | [ "x"; q ] -> apply [] x (int q) state
    | [ "z"; q ] -> apply [] z (int q) state
    | [ "ry"; q; angle ] -> apply [] (ry (float angle)) (int q) state
    | [ "rz"; q; angle ] -> apply [] (rz (float angle)) (int q) state
    | [ "r1"; q; angle ] -> apply [] (r1 (float angle)) (int q) state
    | [ "cx"; c; q ] -> apply [ int c ] x (int q) state
    | [ "ccx"; b; c; q ] -> apply [ int b; int c ] x (int q) state
    | _ -> failwith ("unknown gate: " + text)

let private run arguments =
    match arguments with
    | [ "bell" ] -> Some(ghz 2)
    | [ "ghz"; qubits ] -> Some(ghz (int qubits))
    | [ "grover"; qubits; marked; iterations ] -> Some(grover (int qubits) (int marked) (int iterations))
    | "circuit" :: qubits :: gates ->
        let state = zero (int qubits)
        gates |> List.iter (applyText state)
        Some state
    | _ -> None

[<EntryPoint>]
let main arguments =
    let state =
        try
            run (List.ofArray arguments)
        with error ->
            eprintfn "quantum: %s" error.Message
            None

    match state with
    | Some state ->
        Array.map2 (fun (re: float) (im: float) -> "[" + string re + ", " + string im + "]") state.Re state.Im
        |> String.concat ", "
        |> fun pairs -> printfn "[%s]" pairs

        0
    | None ->
        eprintfn "%s" usage
        2
