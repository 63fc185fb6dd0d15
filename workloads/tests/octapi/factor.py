"""Like OctaPi's factoring: intervals upward from the square root; the first factor that is found cancels the other jobs."""


def find_factor(semiprime, lower, upper):
    for candidate in range(lower, upper, 2):
        if semiprime % candidate == 0:
            return candidate, semiprime // candidate
    return 0, 0


def ended(job):
    global found
    with changed:
        if pending.pop(job.id, None) and job.result and job.result[0]:
            found = job.result
        changed.notify()


if __name__ == "__main__":
    import math
    import sys
    import threading

    import dispy

    semiprime, step = int(sys.argv[1]), int(sys.argv[2])
    changed, pending, found = threading.Condition(), {}, None
    cluster = dispy.JobCluster(find_factor, nodes=["192.168.1.*"], callback=ended, ip_addr="0.0.0.0", reentrant=True)
    lower = math.isqrt(semiprime) | 1
    number, everything = 0, []
    while not found and lower <= semiprime // 2:
        number += 1
        with changed:
            job = cluster.submit(semiprime, lower, lower + step)
            job.id = number
            pending[number] = job
            everything.append(job)
            while len(pending) >= 24 and not found:
                changed.wait()
        lower += step
    for job in list(pending.values()):
        cluster.cancel(job)
    cluster.wait()
    print(f"{semiprime} = {found[0]} x {found[1]}" if found else "no factor")
    states = [job.status for job in everything]
    done, gone = (
        states.count(dispy.DispyJob.Finished),
        states.count(dispy.DispyJob.Cancelled) + states.count(dispy.DispyJob.Terminated),
    )
    print(f"{number} jobs: {done} done, {gone} cancelled")
    cluster.close()
