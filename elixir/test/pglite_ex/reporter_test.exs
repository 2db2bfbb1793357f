defmodule PgliteEx.ReporterTest do
  # Logger is the VM's.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Channel, Readiness, Reporter, Servers, WasmPort}

  describe "while Logger makes its callers wait," do
    # In synchronous mode, as under load, a caller waits until Logger has taken its line.
    setup do
      threshold = Application.fetch_env!(:logger, :sync_threshold)
      Logger.configure(sync_threshold: 0)
      on_exit(fn -> Logger.configure(sync_threshold: threshold) end)
    end

    @tag :tmp_dir
    test "the port's owner serves its connections, and ends, and then all is logged",
         %{tmp_dir: directory} do
      Process.flag(:trap_exit, true)
      frames = [{:log, 7, [{"level", "warn"}, {"text", "low on pages"}]}, {:data, 1, "answer"}]
      # An `O` frame has ten bytes.
      shell = "hello; head -c 10 > /dev/null; frame 1; frame 2; head -c 1 > /dev/null; exit 3"
      program = BadProgram.write!(directory, shell, frames)

      log =
        capture_log(fn ->
          {wasm_port, registry} = Servers.start_port!(executable: program)
          {:ok, ^wasm_port} = Readiness.await(registry, 10_000)

          while_logger_is_behind(fn ->
            {:ok, channel} = Channel.open(wasm_port)
            # Behind the log line.
            assert_receive {Channel, 1, {:data, "answer"}}, 5_000
            assert {:ok, %{"protocol" => "1"}} = WasmPort.hello(wasm_port)
            Channel.send(channel, "and end")
            assert_receive {:EXIT, ^wasm_port, _reason}, 5_000
          end)

          stop_supervised!({Reporter, registry})
        end)

      assert log =~ "low on pages"
      assert log =~ "exit status 3"
    end

    test "a bounded number of bytes waits for it, and what was dropped is counted" do
      reporter = start_reporter!()
      text = String.duplicate("x", 1_000)

      log =
        capture_log(fn ->
          while_logger_is_behind(fn ->
            for _ <- 1..10_000, do: Reporter.log(reporter, :info, text, [])
            assert {:message_queue_len, waiting} = process_info(reporter, :message_queue_len)
            assert waiting * byte_size(text) < 2_097_152
          end)

          stop_supervised!(Reporter)
        end)

      logged = length(:binary.matches(log, text))
      assert logged > 1_000
      assert [_, dropped] = Regex.run(~r/(\d+) log lines were dropped/, log)
      assert logged + String.to_integer(dropped) == 10_000
    end
  end

  test "lines are admitted again when those that waited have been logged" do
    reporter = start_reporter!()

    log =
      capture_log(fn ->
        for n <- 1..10_000 do
          Reporter.log(reporter, :info, "line #{n}.", [])
          # Waits until it has been passed on.
          :sys.get_state(reporter.name)
        end

        stop_supervised!(Reporter)
      end)

    assert log =~ "line 10000."
    refute log =~ "dropped"
  end

  test "what is reported before the process has started, or after it has ended, hurts nobody" do
    reporter = Reporter.new({:via, Registry, {:no_such_registry, Reporter}})
    assert :ok = Reporter.log(reporter, :info, "unheard", [])
    assert :ok = Reporter.event(reporter, {[:server, :stop], %{}, %{}})
  end

  defp start_reporter! do
    reporter = Reporter.new(:reporter_of_a_test)
    start_supervised!({Reporter, reporter})
    reporter
  end

  defp process_info(reporter, item), do: reporter.name |> Process.whereis() |> Process.info(item)

  defp while_logger_is_behind(fun) do
    :sys.suspend(Logger)

    try do
      fun.()
    after
      :sys.resume(Logger)
    end
  end
end
