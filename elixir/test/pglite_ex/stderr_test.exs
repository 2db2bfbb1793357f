defmodule PgliteEx.StderrTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{Error, Stderr}

  setup do
    Process.flag(:trap_exit, true)
    %{stderr: await_ready(Stderr.open())}
  end

  test "what a program writes to the pipe can be read when the program has ended",
       %{stderr: stderr} do
    write!(stderr, "seq -f 'line %.0f' 5000")
    assert Stderr.last_lines(stderr, 2) == ["line 4999", "line 5000"]
  end

  test "lines that were received before are among the last", %{stderr: stderr} do
    %{port: port} = stderr
    write!(stderr, "echo first")
    assert_receive {^port, {:data, _line}} = message
    assert {:ok, stderr} = Stderr.handle(stderr, message)
    write!(stderr, "echo second")
    assert Stderr.last_lines(stderr, 5) == ["first", "second"]
  end

  test "no more is kept than the last lines need", %{stderr: stderr} do
    message = {stderr.port, {:data, :binary.copy("chatter\n", 200_000)}}
    assert {:ok, %Stderr{text: text}} = Stderr.handle(stderr, message)
    assert byte_size(text) == 8_192
    assert :binary.referenced_byte_size(text) == 8_192
  end

  test "a line that is no text is shown as bytes", %{stderr: stderr} do
    write!(stderr, ~S(printf '\377\n'))
    assert Stderr.last_lines(stderr, 5) == ["<<255>>"]
  end

  test "a program that has written nothing has no last lines", %{stderr: stderr} do
    assert Stderr.last_lines(stderr, 2) == []
  end

  test "the end of the process behind the pipe is an error, and leaves what was read",
       %{stderr: stderr} do
    {:ok, stderr} = Stderr.handle(stderr, {stderr.port, {:data, "a line\n"}})
    port = stderr.port
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    {_output, 0} = System.cmd("kill", ["-KILL", "#{os_pid}"])
    assert_receive {:EXIT, ^port, _reason} = message, 5_000
    assert {:error, %Error{code: :program_exited}} = Stderr.handle(stderr, message)
    assert Stderr.last_lines(stderr, 2) == ["a line"]
  end

  test "messages of others are not taken", %{stderr: stderr} do
    assert Stderr.handle(stderr, :something_else) == :unknown
  end

  defp await_ready(stderr) do
    assert_receive message, 5_000

    case Stderr.handle(stderr, message) do
      {:ready, stderr} -> stderr
      {:ok, stderr} -> await_ready(stderr)
    end
  end

  # Runs a command whose output goes to the pipe.
  defp write!(stderr, command) do
    settings = [env: [{"PIPE", stderr.path}]]
    {"", 0} = System.cmd("/bin/sh", ["-c", "{ #{command}; } > \"$PIPE\""], settings)
  end
end
