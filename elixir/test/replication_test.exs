defmodule PgliteEx.ReplicationTest do
  @moduledoc "Templates on their way to other caches and other nodes."
  # The node is the VM's.
  use ExUnit.Case, async: false

  alias PgliteEx.{Caches, Error, Partition, Servers, Template}

  @moduletag :tmp_dir
  # As many as `PGLITE_EX_DATABASES` says, over all nodes.
  @databases 80

  # Its cache has the compiled code.
  setup_all do
    {:ok, server} = PgliteEx.start_link(mode: :isolated)
    PgliteEx.stop(server)
  end

  setup %{tmp_dir: directory} do
    # Caches are private.
    File.chmod!(directory, 0o700)
    on_exit(fn -> File.rm_rf(directory) end)
  end

  describe "a file" do
    test "has a template from one cache for another", %{tmp_dir: directory} do
      [here, there] = for name <- ["here", "there"], do: cache!(directory, name)
      path = Path.join(directory, "app.template")
      :yes = :global.register_name(Partition, self())

      source = Servers.start!(mode: :isolated, cache_dir: here)
      prepare = &Template.prepare(&1, "app", fn opts -> Partition.migrate(opts) end, key: "k")
      assert {:ok, :built} = prepare.(source)
      assert {:ok, %{bytes: bytes, digest: digest}} = Template.export(source, "app", path)
      assert File.stat!(path).size == bytes
      assert {:ok, templates} = Template.list(source)
      assert %{digest: ^digest} = Enum.find(templates, &(&1.name == "app"))

      target = Servers.start!(mode: :isolated, cache_dir: there)
      assert {:ok, imported} = Template.import(target, path)
      assert imported == %{name: "app", database: "app", digest: digest, result: :imported}
      assert {:ok, %{result: :reused}} = Template.import(target, path)
      assert Partition.use_databases(target, "app", 3) == %{{"499500", "1"} => 3}
      # The key is that of the template, wherever it was prepared.
      assert {:ok, :reused} = prepare.(target)

      assert {:error, %Error{code: "42704"}} = Template.export(target, "nowhere", path)
      :ok = Template.drop(target, "app")
      File.write!(path, binary_part(File.read!(path), 0, bytes - 1))
      assert {:error, %Error{code: "XX001", message: message}} = Template.import(target, path)
      assert message =~ "it ends early"
      assert {:error, %Error{code: "58P01"}} = Template.import(target, path <> "x")
      :global.unregister_name(Partition)
    end
  end

  describe "other nodes" do
    setup :distribute

    test "of which each is sent a template once", %{tmp_dir: directory} do
      nodes = for number <- 1..4, do: node!(directory, number)
      [first | others] = nodes
      server = PgliteEx.PartitionServer

      assert {:ok, :built} =
               on(first, Template, :prepare, [server, "app", &Partition.migrate/1, [key: "k"]])

      assert_receive {:migrated, ^first}

      assert on(first, Template, :replicate, [server, "app", nodes]) ==
               {:ok, Map.new(others, &{&1, :sent}) |> Map.put(first, :reused)}

      # From any of them, and from none again.
      assert on(List.last(nodes), Template, :replicate, [server, "app", nodes]) ==
               {:ok, Map.new(nodes, &{&1, :reused})}

      count = "PGLITE_EX_DATABASES" |> System.get_env("#{@databases}") |> String.to_integer()

      used =
        nodes
        |> Task.async_stream(&on(&1, Partition, :use_databases, [server, "app", div(count, 4)]),
          timeout: :infinity
        )
        |> Enum.map(fn {:ok, frequencies} -> frequencies end)

      assert used == List.duplicate(%{{"499500", "1"} => div(count, 4)}, 4)
      refute_received {:migrated, _node}

      # A template that was made again is another one.
      again = [server, "app", &Partition.migrate/1, [key: "l"]]
      assert {:ok, :built} = on(first, Template, :prepare, again)

      assert {:ok, %{^first => :reused} = outcomes} =
               on(first, Template, :replicate, [server, "app", nodes])

      assert Enum.all?(others, &(outcomes[&1] == :sent))
      assert {:ok, :reused} = on(hd(others), Template, :prepare, again)
      assert left_in_temporary_directories(nodes) == []
    end

    test "prepare it once together, as the guide has it", %{tmp_dir: directory} do
      guide = File.read!(Path.join(__DIR__, "../guides/tests_on_several_machines.md"))

      [code] =
        Regex.run(~r/```elixir\n(# test\/support\/partitions.ex\n.*?)```/s, guide,
          capture: :all_but_first
        )

      [{module, binary}] = Code.compile_string(code)
      nodes = for number <- 1..3, do: node!(directory, number)

      for node <- nodes,
          do: {:module, _} = on(node, :code, :load_binary, [module, 'guide', binary])

      arguments = [nodes, PgliteEx.PartitionServer, "app", &Partition.migrate/1, [key: "k"]]

      prepared =
        Task.async_stream(nodes, &on(&1, module, :prepare, arguments), timeout: :infinity)

      assert for({:ok, done} <- prepared, do: elem(done, 0)) == [:ok, :ok, :ok]

      digests =
        for node <- nodes,
            {:ok, templates} = on(node, Template, :list, [PgliteEx.PartitionServer]),
            %{name: "app", digest: digest} <- templates,
            do: digest

      assert [digest, digest, digest] = digests
      assert_received {:migrated, _node}
      refute_received {:migrated, _node}
    end

    test "that cannot have it are named, and the others have it", %{tmp_dir: directory} do
      server = PgliteEx.PartitionServer
      [good, without] = [node!(directory, 1), node!(directory, 2, false)]
      Servers.start!(name: server, mode: :isolated, cache_dir: cache!(directory, "own"))
      assert {:ok, :built} = Template.prepare(server, "app", &Partition.migrate/1)
      nowhere = :"nowhere@127.0.0.1"

      assert {:error, %Error{code: :replication_failed, message: message}} =
               Template.replicate(server, "app", [nowhere, good, without])

      assert message =~ ~s(the template "app" was not replicated to )
      assert message =~ "#{nowhere}: there is no connection to it (noconnection)"
      assert message =~ "#{without}: it has no server PgliteEx.PartitionServer"
      refute message =~ "#{good}: "
      assert {:ok, %{^good => :reused}} = Template.replicate(server, "app", [good])
      assert {:error, %Error{code: "42704"}} = Template.replicate(server, "no", [good])

      assert_raise ArgumentError, ~r/server:/, fn ->
        Template.replicate(Process.whereis(server), "app", [good])
      end
    end

    test "that are sent one by a process that ends keep nothing of it", %{tmp_dir: directory} do
      node = node!(directory, 1)
      reference = make_ref()
      server = PgliteEx.PartitionServer

      {sender, monitor} =
        spawn_monitor(fn ->
          :erpc.send_request(node, PgliteEx.Delivery, :fetch, [server, self(), reference])

          receive do:
                    ({^reference, fetcher, :next} ->
                       send(fetcher, {reference, {:ok, :zlib.compress("PGL")}}))

          # It has written that, and wants more.
          receive do: ({^reference, fetcher, :next} -> exit({:fetched_by, fetcher}))
        end)

      assert_receive {:DOWN, ^monitor, :process, ^sender, {:fetched_by, fetcher}}, 10_000
      fetching = Process.monitor(fetcher)
      assert_receive {:DOWN, ^fetching, :process, ^fetcher, _reason}, 10_000
      assert left_in_temporary_directories([node]) == []
      assert {:ok, templates} = on(node, Template, :list, [server])
      refute Enum.any?(templates, &(&1.name == "app"))
    end

    test "refuse one that is damaged on the way", %{tmp_dir: directory} do
      node = node!(directory, 1)
      reference = make_ref()

      request =
        :erpc.send_request(node, PgliteEx.Delivery, :fetch, [
          PgliteEx.PartitionServer,
          self(),
          reference
        ])

      assert_receive {^reference, fetcher, :next}, 10_000
      send(fetcher, {reference, {:ok, :zlib.compress("PGLPARC1" <> :binary.copy("x", 100))}})
      assert_receive {^reference, ^fetcher, :next}, 10_000
      send(fetcher, {reference, :eof})
      assert {:error, %Error{code: "XX001"}} = :erpc.receive_response(request, 10_000)
      assert left_in_temporary_directories([node]) == []
    end
  end

  defp on(node, module, function, arguments), do: :erpc.call(node, module, function, arguments)

  # This node gets a name. Erlang finds nodes by a daemon, which only a VM that is started with a name starts.
  defp distribute(_context) do
    {_output, 0} = System.cmd("epmd", ["-daemon"])
    await_epmd(System.monotonic_time(:millisecond) + 10_000)
    {:ok, _pid} = Node.start(:"pglite_ex_#{System.pid()}@127.0.0.1", :longnames)
    :yes = :global.register_name(Partition, self())
    on_exit(&Node.stop/0)
  end

  defp await_epmd(deadline) do
    with {:error, reason} <- :erl_epmd.names({127, 0, 0, 1}) do
      if System.monotonic_time(:millisecond) > deadline, do: raise("no epmd: #{reason}")
      await_epmd(deadline)
    end
  end

  # A node with a cache and a temporary directory of its own, and a server unless it is to have none.
  defp node!(directory, number, server? \\ true) do
    cache = cache!(directory, "cache#{number}")
    temporary = Path.join(directory, "temporary#{number}")
    File.mkdir!(temporary)
    variables = [{'XDG_CACHE_HOME', to_charlist(cache)}, {'TMPDIR', to_charlist(temporary)}]
    paths = for path <- :code.get_path(), do: ['-pa', path]

    options = %{
      name: :"pglite_ex_#{System.pid()}_#{number}",
      host: '127.0.0.1',
      longnames: true,
      env: variables,
      args: Enum.concat(paths),
      wait_boot: 60_000,
      # It ends with its connection, and is not waited for.
      shutdown: :close
    }

    {:ok, _peer, node} = :peer.start_link(options)

    if server? do
      server = [name: PgliteEx.PartitionServer, mode: :isolated, cache_dir: cache]
      assert on(node, Partition, :start, [server]) |> is_pid()
    end

    node
  end

  defp left_in_temporary_directories(nodes) do
    for node <- nodes, file <- File.ls!(on(node, System, :tmp_dir!, [])), do: file
  end

  defp cache!(directory, name), do: Caches.without_templates!(directory, name)
end
