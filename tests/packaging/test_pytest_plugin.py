"""The fixtures, as a suite of somebody else's meets them: in a pytest of its own."""

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run a suite in another process, without what else is installed; every warning is an error."""

    def run(source, *options):
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-p", "kickstand.pytest_plugin", "-W", "error", "-q", *options)

    return run


def test_each_test_gets_the_server_as_new(suite):
    result = suite("""
        import threading
        import pytest
        from kickstand.client import Client, KickstandError

        def test_one_leaves_a_vm_a_kick_and_a_parked_run_behind(kickstand_server):
            kickstand_server.client.create_vm(id="mine", vcpus=1, programs=[[["spin"]]])
            kickstand_server.client.kick()
            run = threading.Thread(target=park, args=(kickstand_server.url,), daemon=True)
            run.start()
            mine = Client(kickstand_server.url, vm="mine")
            while mine.vcpu(0)["state"] != "guest":
                pass
            mine.close()

        def park(url):
            with Client(url, vm="mine") as client, pytest.raises(KickstandError):
                client.run(0)

        def test_another_sees_nothing_of_it(kickstand_server):
            only = kickstand_server.client.vms()["vms"]
            assert [vm["id"] for vm in only] == ["default"]
            assert only[0]["kicked"] is False
            assert len(only[0]["vcpus"]) == 4

        def test_a_test_may_close_the_client(kickstand_server):
            kickstand_server.client.close()
    """)
    result.assert_outcomes(passed=3)


def test_machines_need_no_server_and_no_plugin_for_coroutines(suite):
    result = suite("""
        import asyncio
        import sys
        from kickstand.core.memslots import Region

        def test_a_kick_ends_a_run(kickstand_vm):
            async def kicked():
                async with kickstand_vm(programs=[[["spin"]]]) as vm:
                    run = vm.start_run(0)
                    await vm.kick()
                    return await run.result()

            assert asyncio.run(kicked())["errno"] == "EINTR"
            assert "uvicorn" not in sys.modules

        def test_what_is_parked_at_the_end_of_the_block_ends_with_it(kickstand_vm):
            async def leave():
                async with kickstand_vm(vcpus=2, variant="holds", programs=[[["spin"]]]) as vm:
                    run = vm.start_run(0)
                    await asyncio.sleep(0)
                return len(vm.runs)

            assert asyncio.run(leave()) == 0
    """)
    result.assert_outcomes(passed=2)


def test_a_suite_of_coroutines_awaits_machines(suite):
    result = suite("""
        import pytest

        @pytest.mark.asyncio
        async def test_memory(kickstand_vm):
            from kickstand.core.memslots import Region

            async with kickstand_vm(programs=[[["write", 0x10, 7], ["out", 0x3f8, 65]]]) as vm:
                page = vm.memory.allocate(4096)
                await vm.set_user_memory_region(Region(0, 0, 0, page.size, page.base))
                answer = await vm.run(0)
                assert answer["exit_reason"] == "KVM_EXIT_IO"
                assert vm.memory.read(page.base + 0x10, 1) == bytes([7])
    """, "-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")  # fmt: skip
    result.assert_outcomes(passed=1)


def test_a_suite_that_asks_for_nothing_loads_nothing(suite):
    result = suite("""
        import sys

        def test_lazy():
            assert "kickstand.pytest_plugin" in sys.modules
            assert not {"asyncio", "fastapi", "httpx", "numpy", "unicorn", "uvicorn"} & set(sys.modules)
    """)
    result.assert_outcomes(passed=1)
