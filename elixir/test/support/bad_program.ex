defmodule PgliteEx.BadProgram do
  @moduledoc "Writes small programs that misbehave, as shell scripts, for tests of what then happens."

  alias PgliteEx.Frame

  @hello [
    {"protocol", "1"},
    {"version", "0.1.0"},
    {"max_frame", "1048576"},
    {"window", "262144"},
    {"pid", "@PID@"}
  ]

  @doc """
  A program that runs `shell`. In it, `hello` is a function that sends a proper hello frame and
  `frame N` one that sends the N-th of `frames`.
  """
  def write!(directory, shell, frames \\ []) do
    for {frame, index} <- Enum.with_index(frames, 1) do
      File.write!(Path.join(directory, "frame#{index}"), with_length(frame))
    end

    File.write!(Path.join(directory, "hello"), Frame.encode({:hello, 0, @hello}))
    path = Path.join(directory, "bad-program")

    File.write!(path, """
    #!/bin/sh
    frame() { cat "#{directory}/frame$1"; }
    await_gate() { read line < "#{directory}/gate"; }
    hello() {
      sed "s/@PID@/$$/" "#{directory}/hello" > "#{directory}/hello.$$"
      size=$(wc -c < "#{directory}/hello.$$")
      printf "\\\\000\\\\000\\\\000\\\\$(printf %03o "$size")"
      cat "#{directory}/hello.$$"
    }
    #{shell}
    """)

    File.chmod!(path, 0o755)
    path
  end

  @doc "Makes a gate for `await_gate` in a program: it waits there until `open_gate!/1`."
  def make_gate!(directory) do
    path = Path.join(directory, "gate")
    {_output, 0} = System.cmd("mkfifo", [path])
    path
  end

  @doc "Lets one program through the gate, and returns when it has come to it."
  def open_gate!(path), do: {_output, 0} = System.cmd("sh", ["-c", "echo go > \"$0\"", path])

  defp with_length(frame) do
    bytes = if is_binary(frame), do: frame, else: IO.iodata_to_binary(Frame.encode(frame))
    [<<byte_size(bytes)::32>>, bytes]
  end
end
