"""Like OctaPi's recommended scripts: a limited number of jobs is in flight, and a callback adds up their results."""


def square(number):
    return number, number * number


def ended(job):
    global total, seen
    if job.status in (dispy.DispyJob.Finished, dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled, dispy.DispyJob.Abandoned):
        changed.acquire()
        if job.id:
            pending.pop(job.id)
            seen += 1
            if job.id % 100 == 0:
                dispy.logger.info('job "%s" gave %s, %s jobs under way', job.id, job.result, len(pending))
            total += job.result[1]
            if len(pending) <= fewest:
                changed.notify()
        changed.release()


if __name__ == "__main__":
    import argparse
    import logging
    import resource
    import threading

    import dispy

    fewest, most = 32, 96
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", type=int)
    jobs = parser.parse_args().jobs

    changed = threading.Condition()
    cluster = dispy.JobCluster(square, nodes="192.168.1.*", callback=ended, loglevel=logging.INFO)
    pending, total, seen, peak = {}, 0, 0, 0
    for number in range(1, jobs + 1):
        job = cluster.submit(number)
        changed.acquire()
        job.id = number
        if job.status == dispy.DispyJob.Created or job.status == dispy.DispyJob.Running:
            pending[number] = job
            peak = max(peak, len(pending))
            if len(pending) >= most:
                while len(pending) > fewest:
                    changed.wait()
        changed.release()
    cluster.wait()
    print(f"{seen} jobs, sum {total}, at most {peak} under way, {len(pending)} left")
    cluster.print_status()
    cluster.close()
