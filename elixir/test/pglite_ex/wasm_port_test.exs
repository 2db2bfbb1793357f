defmodule PgliteEx.WasmPortTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Channel, Error, OperatingSystem, Parts, Readiness, Reporter}
  alias PgliteEx.{Servers, WasmPort}

  describe "a program that" do
    @describetag :tmp_dir

    setup do
      Process.flag(:trap_exit, true)
      :ok
    end

    test "fails at once is reported with its status and its last lines", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "echo 'cannot write to /cache' >&2; exit 1")
      error = assert_fails(program, :program_exited)
      assert error.message =~ "exit status 1"
      assert error.message =~ "cannot write to /cache"
    end

    test "is killed before its hello is reported with the signal", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "kill -KILL $$")
      error = assert_fails(program, :program_exited)
      assert error.message =~ "killed by signal 9"
    end

    test "speaks another protocol is refused with both numbers", %{tmp_dir: directory} do
      hello = {:hello, 0, [{"protocol", "2"}]}
      program = BadProgram.write!(directory, "frame 1; exec sleep 1000", [hello])
      error = assert_fails(program, :protocol_violation)
      assert error.message =~ ~s(it has protocol version "2" and this library has version 1)
    end

    for {limit, hello} <- [
          {"window", [{"protocol", "1"}, {"max_frame", "1048576"}, {"window", "plenty"}]},
          {"max_frame", [{"protocol", "1"}, {"window", "262144"}, {"max_frame", "5"}]}
        ] do
      test "names no #{limit} that bytes can be sent with is refused", %{tmp_dir: directory} do
        hello = {:hello, 0, unquote(hello)}
        program = BadProgram.write!(directory, "frame 1; exec sleep 1000", [hello])
        error = assert_fails(program, :protocol_violation)
        assert error.message =~ unquote(limit)
      end
    end

    test "sends what is no frame is stopped", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; frame 1; exec sleep 1000", ["garbage"])

      log =
        capture_log(fn ->
          {wasm_port, registry} = start(program)

          assert_receive {:EXIT, ^wasm_port, {:shutdown, {%Error{code: :protocol_violation}, _}}},
                         10_000

          await_log(registry)
        end)

      assert log =~ "unknown kind 103"
    end

    test "dies takes its last lines into the crash report", %{tmp_dir: directory} do
      program =
        BadProgram.write!(directory, "hello; read line; echo 'out of pages' >&2; exit 134")

      log =
        capture_log(fn ->
          {wasm_port, registry} = start(program)
          {:ok, channel} = Channel.open(wasm_port)
          Channel.send(channel, "\n")

          assert_receive {:EXIT, ^wasm_port, {:shutdown, {%Error{code: :program_exited}, _}}},
                         10_000

          assert_receive down
          assert {:closed, %{"code" => "57P01"}} = Channel.handle(channel, down)
          await_log(registry)
        end)

      assert log =~ "killed by signal 6"
      assert log =~ "out of pages"
    end

    test "has just exited does not hurt those who still write to it", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; exit 0")
      {wasm_port, _registry} = start(program)

      with {:ok, channel} <- Channel.open(wasm_port) do
        assert_receive {:EXIT, ^wasm_port, _reason}, 10_000
        assert %Channel{} = Channel.send(channel, "too late")
        assert %Channel{} = Channel.consumed(channel, 200_000)
      end
    end

    test "has ended takes no connection more, with the code that its connections end with",
         %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; exit 0")
      {wasm_port, _registry} = start(program)
      assert_receive {:EXIT, ^wasm_port, _reason}, 10_000
      assert {:error, %Error{code: "57P01"}} = Channel.open(wasm_port)
    end

    test "dies before its reply answers those who wait, and those who come later, with an error",
         %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; head -c 1 > /dev/null; exit 1")
      {wasm_port, _registry} = start(program)
      assert {:error, %Error{code: "57P01"}} = WasmPort.request(wasm_port, "stats")
      assert_receive {:EXIT, ^wasm_port, _reason}, 10_000
      assert {:error, %Error{code: "57P01"}} = WasmPort.request(wasm_port, "stats")
    end

    test "does not read its input holds up one writer, and not the port's owner",
         %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; exec sleep 1000")
      {wasm_port, _registry} = start(program)

      # They write on until they are held up: how much the VM takes before it does is its affair.
      write = fn ->
        {:ok, channel} = Channel.open(wasm_port)
        Channel.send(channel, :binary.copy(<<0>>, 262_144))
      end

      writers =
        for _ <- 1..8, do: spawn_link(fn -> write |> Stream.repeatedly() |> Stream.run() end)

      held_up = await_suspended(writers)
      # Their `C` frames wait, and the owner goes on answering.
      for writer <- writers, do: Process.exit(writer, :kill)
      assert {:ok, %{"protocol" => "1"}} = WasmPort.hello(wasm_port)
      assert {:ok, %{id: _}} = WasmPort.register(wasm_port)

      assert {:error, %Error{code: :timeout}} =
               WasmPort.request(wasm_port, "stats", [], timeout: 50)

      assert held_up != []
      # A VM that halts waits until what it has queued is read.
      GenServer.stop(wasm_port)
    end

    test "takes its time to start holds up nobody, and those who need it wait for it",
         %{tmp_dir: directory} do
      gate = BadProgram.make_gate!(directory)
      program = BadProgram.write!(directory, "await_gate; hello; cat > /dev/null")
      {wasm_port, registry} = Servers.start_port!(executable: program)

      # It answers, though there is nothing to do yet.
      assert {:error, %Error{code: "57P03"}} = WasmPort.register(wasm_port)
      assert {:error, %Error{code: "57P03"} = error} = Readiness.await(registry, 10)
      assert error.message =~ "not ready within 10 ms"

      waiting = Task.async(fn -> Readiness.await(registry, 10_000) end)
      first_start = Task.async(fn -> Readiness.first_start(registry) end)
      BadProgram.open_gate!(gate)
      assert Task.await(waiting) == {:ok, wasm_port}
      assert Task.await(first_start) == :ignore
      assert {:ok, %{id: _}} = WasmPort.register(wasm_port)
    end

    test "is stopped before its hello is killed", %{tmp_dir: directory} do
      gate = BadProgram.make_gate!(directory)
      program = BadProgram.write!(directory, "echo $$ > '#{gate}'; exec sleep 1000")
      {wasm_port, _registry} = Servers.start_port!(executable: program)
      {os_pid, 0} = System.cmd("cat", [gate])
      GenServer.stop(wasm_port)
      assert OperatingSystem.ended_within?(String.trim(os_pid), 1)
    end

    test "ignores the order to stop is killed", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "hello; exec sleep 1000")
      server = Servers.start!(executable: program, shutdown_timeout: 0)
      os_pid = OperatingSystem.program(server)
      log = capture_log(fn -> PgliteEx.stop(server) end)
      # A second longer than the program was given.
      assert log =~ "pglite-port has not stopped in 1000 ms and is killed"
      assert OperatingSystem.ended_within?(os_pid, 1)
    end
  end

  describe "a log frame" do
    @describetag :tmp_dir

    test "becomes a log event with its level, target and connection", %{tmp_dir: directory} do
      frame = {:log, 7, [{"level", "warn"}, {"target", "guest"}, {"text", "low on pages"}]}
      program = BadProgram.write!(directory, "hello; frame 1; frame 2", [frame, "the end"])
      Process.flag(:trap_exit, true)

      log =
        capture_log([metadata: [:target, :connection]], fn ->
          {wasm_port, registry} = start(program)
          assert_receive {:EXIT, ^wasm_port, _reason}, 10_000
          await_log(registry)
        end)

      assert log =~ "[warning]"
      assert log =~ "target=guest"
      assert log =~ "connection=7"
      assert log =~ "low on pages"
    end
  end

  defp start(program) do
    {wasm_port, registry} = Servers.start_port!(executable: program)
    {:ok, ^wasm_port} = Readiness.await(registry, 10_000)
    {wasm_port, registry}
  end

  # The process that logs has done so with all that was reported to it before.
  defp await_log(registry), do: registry |> Parts.whereis(Reporter) |> :sys.get_state()

  defp assert_fails(program, code) do
    {wasm_port, registry} = Servers.start_port!(executable: program)

    assert_receive {:EXIT, ^wasm_port, {:shutdown, {%Error{code: ^code} = error, _stacktrace}}},
                   10_000

    assert {:error, {^error, _stacktrace}} = Readiness.first_start(registry)
    error
  end

  # A writer that the port's queue has no room for is suspended by the VM.
  defp await_suspended(pids) do
    case Enum.filter(pids, &(Process.info(&1, :status) == {:status, :suspended})) do
      [] -> await_suspended(pids)
      suspended -> suspended
    end
  end
end
