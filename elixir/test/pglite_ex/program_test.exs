defmodule PgliteEx.ProgramTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Error, Options, Program}

  doctest Program

  describe "a program that takes long to start" do
    @describetag :tmp_dir

    test "is waited for as long as it says something", %{tmp_dir: directory} do
      Process.flag(:trap_exit, true)
      executable = BadProgram.write!(directory, "echo 'redo in progress' >&2; exec sleep 1000")
      {:ok, program} = Program.open(Options.new!(executable: executable))
      {program, message} = until_heard(program)
      # It has only just begun.
      assert Program.news(program, message) == []
      slow = %{program | opened_at: program.opened_at - 10_000}
      assert Program.news(slow, message) == ["redo in progress"]

      late = {Program, :start_timeout}
      assert {:ok, program} = Program.handle(program, late)
      assert {:error, %Error{code: :timeout, message: message}} = Program.handle(program, late)
      assert message =~ "said nothing for 180000 ms"
      assert message =~ "redo in progress"
      Program.kill(program)
    end

    # Until the program has said something, with the message that brought it.
    defp until_heard(program) do
      assert_receive message, 5_000

      case Program.handle(program, message) do
        {:ok, %{heard?: true, port: port} = program} when port != nil -> {program, message}
        {:ok, program} -> until_heard(program)
        :unknown -> until_heard(program)
      end
    end
  end

  describe "the settings of the port" do
    test "name the directories that were given, and no others" do
      settings =
        settings(pglite_dir: "/opt/pglite", cache_dir: "/var/cache/app", icu_data: "/opt/icu")

      assert ["--icu-data", "/opt/icu"] = after_word(settings[:args], "--icu-data")
      assert ["--pglite-dir", "/opt/pglite"] = after_word(settings[:args], "--pglite-dir")
      assert ["--cache-dir", "/var/cache/app"] = after_word(settings[:args], "--cache-dir")
      assert ["--data", "/srv/data"] = after_word(settings(data: "/srv/data")[:args], "--data")
      assert [] = after_word(settings([])[:args], "--cache-dir")
      assert [] = after_word(settings([])[:args], "--data")
      assert [] = after_word(settings([])[:args], "--icu-data")
    end

    test "pass on PostgreSQL's own settings, and the level of the log" do
      settings = settings(settings: [work_mem: "16MB", jit: false], log_level: :debug)
      assert ["--set", "work_mem=16MB"] = after_word(settings[:args], "--set")
      assert "jit=false" in settings[:args]
      assert {~c"PGLITE_PORT_LOG", ~c"debug"} in settings[:env]
    end

    test "name every extension of the user's own" do
      arguments = settings(extensions: ["/opt/a.tar.gz", "/opt/b.tar.gz"])[:args]
      assert ["--extension", "/opt/a.tar.gz"] = after_word(arguments, "--extension")
      assert Enum.count(arguments, &(&1 == "--extension")) == 2
      assert "/opt/b.tar.gz" in arguments
      assert_raise ArgumentError, ~r/a list of paths/, fn -> settings(extensions: "/opt/a") end
    end

    test "name the template of a shared cluster; the database of an isolated one names its own" do
      shared = settings(template: "shop", database: "app")
      assert ["--template", "shop"] = after_word(shared[:args], "--template")
      isolated = settings(mode: :isolated, template: "shop")
      assert [] = after_word(isolated[:args], "--template")
    end

    test "give the time of a stop in seconds" do
      settings = settings(shutdown_timeout: 1_500)
      assert ["--shutdown-timeout", "1.5"] = after_word(settings[:args], "--shutdown-timeout")
    end

    test "limit what the VM queues for a program that does not read" do
      assert {low, high} = settings([])[:busy_limits_port]
      assert low < high and high <= 1_048_576
    end

    defp settings(options) do
      {_name, settings} = options |> Options.new!() |> Program.port_settings("/bin/p", "/tmp/e")
      settings
    end

    defp after_word(words, word), do: words |> Enum.drop_while(&(&1 != word)) |> Enum.take(2)
  end
end
